"""What the Redis queue does in one step each, as Lua scripts that its server runs.

Each is run behind `redis_common.COMMON`, where the keys are explained, and what a full server
takes.
"""

ADD = """
-- ARGV: id, kind, then FIELDS. A job that is there already is left as it is.
local id, kind = ARGV[1], ARGV[2]
if redis.call('HSETNX', p .. 'job:' .. id, 'kind', kind) == 1 then
  redis.call('HSET', p .. 'job:' .. id, 'succeeded', 0, 'failed', 0, 'repeats', 0,
    'input_tokens', 0, 'output_tokens', 0, 'bytes', 0)
  write(id, 3)
  local last = redis.call('INCR', p .. 'last')
  redis.call('ZADD', p .. 'jobs', last, id)
  redis.call('ZADD', p .. 'jobs:' .. kind, last, id)
  count_bytes(id, #ARGV[3])
  tell()
end
"""

CHANGE = """
-- ARGV: id, expected state, then FIELDS. Returns 1 where it was changed.
local id = ARGV[1]
if redis.call('HGET', p .. 'job:' .. id, 'state') ~= ARGV[2] then
  return 0
end
redis.call('ZREM', due_set(id), id)  -- first, for a full server; `write` schedules it anew
write(id, 3)
tell()
return 1
"""

BEGIN = """
-- ARGV as of CHANGE, then number and content of each line, in place of all that the job had.
local id, bytes, last = ARGV[1], 0, 0
local job, lines, results = p .. 'job:' .. id, p .. 'lines:' .. id, p .. 'results:' .. id
if redis.call('HGET', job, 'state') ~= ARGV[2] then
  return 0
end
redis.call('HSET', job, 'succeeded', 0, 'failed', 0, 'input_tokens', 0, 'output_tokens', 0)
for _, number in ipairs(redis.call('HKEYS', lines)) do
  bytes = bytes - redis.call('HSTRLEN', lines, number)
  withdraw(id, number)
end
for _, number in ipairs(redis.call('HKEYS', results)) do
  bytes = bytes - redis.call('HSTRLEN', results, number)
end
redis.call('UNLINK', lines, results, p .. 'attempts:' .. id, p .. 'places:' .. id)
write(id, 3)
local due_ms = redis.call('HGET', job, 'not_before_ms')
for index = 11, #ARGV, 2 do
  local number, content = ARGV[index], ARGV[index + 1]
  redis.call('HSET', lines, number, content)
  offer(id, number, due_ms)
  bytes, last = bytes + #content, math.max(last, tonumber(number))
end
redis.call('HSET', job, 'last', last)
count_bytes(id, bytes)
tell()
return 1
"""

REOPEN = """
-- ARGV as of CHANGE. What has not succeeded is claimed anew.
local id = ARGV[1]
if redis.call('HGET', p .. 'job:' .. id, 'state') ~= ARGV[2] then
  return 0
end
local numbers = redis.call('HKEYS', p .. 'lines:' .. id)
table.sort(numbers, function(one, other) return tonumber(one) < tonumber(other) end)
for _, number in ipairs(numbers) do
  count_bytes(id, 0 - redis.call('HSTRLEN', p .. 'results:' .. id, number))
  redis.call('HDEL', p .. 'results:' .. id, number)
  withdraw(id, number)
end
redis.call('DEL', p .. 'attempts:' .. id)
redis.call('HSET', p .. 'job:' .. id, 'failed', 0)
if ARGV[4] == 'validating' and redis.call('EXISTS', p .. 'results:' .. id) == 0 then
  -- It begins anew, also with what had succeeded and is forgotten.
  redis.call('HSET', p .. 'job:' .. id, 'succeeded', 0, 'input_tokens', 0, 'output_tokens', 0)
end
write(id, 3)
local due_ms = redis.call('HGET', p .. 'job:' .. id, 'not_before_ms')
for _, number in ipairs(numbers) do
  offer(id, number, due_ms)
end
tell()
return 1
"""

CLAIM_JOB = """
-- ARGV: kind, lease in ms. Returns the id of the most urgent job, of those the oldest; or nothing.
local now = now_ms()
local due = p .. 'due:' .. ARGV[1]

-- All kinds had one set before each had its own, and have where a controller from then shares the
-- queue. What was done with a job there is not known here.
local before = redis.call('ZRANGE', p .. 'due', 0, 999, 'WITHSCORES')
for index = 1, #before, 2 do
  local id = before[index]
  redis.call('ZREM', p .. 'due', id)  -- first, for a full server
  if kind_of(id) then
    redis.call('ZADD', due_set(id), before[index + 1], id)
  end
end

local first, first_rank, first_number
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 100)) do
  local is_due = due_at(id)
  if is_due == '' or tonumber(is_due) > now_ms() then
    redis.call('ZREM', due, id)
    schedule(id)
  else
    local rank = tonumber(redis.call('HGET', p .. 'job:' .. id, 'rank'))
    local number = tonumber(redis.call('ZSCORE', p .. 'jobs', id))
    if not first or rank < first_rank or (rank == first_rank and number < first_number) then
      first, first_rank, first_number = id, rank, number
    end
  end
end
if first then
  redis.call('ZREM', due, first)  -- first, for a full server
  redis.call('ZADD', due, now + ARGV[2], first)
end
return first
"""

RENEW_JOB = """
-- ARGV: id, the state in which it was claimed, lease in ms.
local id = ARGV[1]
if redis.call('HGET', p .. 'job:' .. id, 'state') == ARGV[2] then
  redis.call('ZREM', due_set(id), id)  -- first, for a full server
  redis.call('ZADD', due_set(id), now_ms() + ARGV[3], id)
end
"""

NOTE_REASON = """
-- ARGV: id, the state in which it was claimed, reason.
local job = p .. 'job:' .. ARGV[1]
if redis.call('HGET', job, 'state') == ARGV[2] then
  redis.call('HDEL', job, 'reason')  -- first, for a full server
  redis.call('HSET', job, 'reason', ARGV[3])
end
"""

REMOVE = """
-- ARGV: id.
local id = ARGV[1]
local kind, bytes, mode = unpack(redis.call('HMGET', p .. 'job:' .. id, 'kind', 'bytes', 'mode'))
if kind then
  redis.call('ZREM', p .. 'wanting:' .. (mode or ''), id)  -- first, for a full server
  count_job(id, -1)
  redis.call('DECRBY', p .. 'bytes', bytes)
  redis.call('ZREM', p .. 'jobs', id)
  redis.call('ZREM', p .. 'jobs:' .. kind, id)
  redis.call('ZREM', p .. 'due:' .. kind, id)
  redis.call('ZREM', p .. 'due', id)  -- see CLAIM_JOB
  for _, name in ipairs({'job:', 'lines:', 'results:', 'attempts:', 'places:'}) do
    redis.call('UNLINK', p .. name .. id)
  end
end
"""

ADD_LINES = """
-- ARGV: id, then number and content of each line.
local id = ARGV[1]
local state, due_ms = unpack(redis.call('HMGET', p .. 'job:' .. id, 'state', 'not_before_ms'))
if state == 'validating' then
  for index = 2, #ARGV, 2 do
    local number, content = ARGV[index], ARGV[index + 1]
    local is_settled = redis.call('HEXISTS', p .. 'results:' .. id, number) == 1
    if not is_settled and redis.call('HSETNX', p .. 'lines:' .. id, number, content) == 1 then
      count_bytes(id, #content)
      offer(id, number, due_ms)
      local last = tonumber(redis.call('HGET', p .. 'job:' .. id, 'last') or 0)
      redis.call('HSET', p .. 'job:' .. id, 'last', math.max(last, tonumber(number)))
    end
  end
  tell()
end
"""

CLAIM = """
-- ARGV: kind, owner, how many, lease in ms, number of ranks.
-- Returns id, number, content and attempts of each.
local AGAIN_MS = 1000
local kind, owner, limit, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local taken = {}
local later = p .. 'later:' .. kind

for _, line in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, limit)) do
  local id, number = string.match(line, '^(.+) (%d+)$')
  redis.call('ZREM', later, line)
  if may_settle(id) then
    offer(id, number, 0)
  end
end

local wanted = {}
local function is_wanted(id)
  if wanted[id] == nil then
    local expires = redis.call('HGET', p .. 'job:' .. id, 'expires_ms')
    wanted[id] = may_settle(id) and (expires == '' or tonumber(expires) > now)
  end
  return wanted[id]
end

-- Whether a job may be given others in place of its lines: what came of these would be taken for
-- what came of the others. So may a document to which a controller from before BEGIN adds some.
local function may_be_replaced(id)
  return kind == 'document' and redis.call('HGET', p .. 'job:' .. id, 'state') == 'validating'
end

local function take(entries, stream, rank)
  for _, each in ipairs(entries) do
    local entry, id, number = each[1], each[2][2], each[2][4]
    local stands_there = redis.call('HGET', p .. 'places:' .. id, number) == rank .. ' ' .. entry
    if stands_there and may_be_replaced(id) then
      lease(stream, owner, entry, AGAIN_MS)
    elseif stands_there and is_wanted(id) then
      local content = redis.call('HGET', p .. 'lines:' .. id, number)
      local attempts = redis.call('HINCRBY', p .. 'attempts:' .. id, number, 1)
      lease(stream, owner, entry, lease_ms)
      table.insert(taken, {id, number, content, attempts})
    else
      redis.call('XACK', stream, GROUP, entry)
      redis.call('XDEL', stream, entry)
      if stands_there then
        redis.call('HDEL', p .. 'places:' .. id, number)
      end
    end
  end
end

for rank = 0, ARGV[5] - 1 do
  local stream = ready(kind, rank)
  if #taken < limit and redis.call('EXISTS', stream) == 1 then
    local cursor = '0-0'
    repeat  -- what a consumer left that is dead, or whose lease is over
      local found = redis.call('XAUTOCLAIM', stream, GROUP, owner, LONGEST_LEASE_MS, cursor,
        'COUNT', limit - #taken)
      cursor = found[1]
      take(found[2], stream, rank)
    until cursor == '0-0' or #taken >= limit
    while #taken < limit do
      local found = redis.call('XREADGROUP', 'GROUP', GROUP, owner, 'COUNT', limit - #taken,
        'STREAMS', stream, '>')
      if not found then
        break
      end
      take(found[1][2], stream, rank)
    end
  end
end
return taken
"""

RENEW = """
-- ARGV: owner, lease in ms, then id and number of each line. Returns the positions of those that
-- are not the owner's.
local owner, lost = ARGV[1], {}
for index = 3, #ARGV, 2 do
  local stream, entry = held_by(owner, ARGV[index], ARGV[index + 1])
  if stream then
    lease(stream, owner, entry, tonumber(ARGV[2]))
  else
    table.insert(lost, (index - 3) / 2)
  end
end
return lost
"""

SETTLE = """
-- ARGV: id, number, 1 for a success, result, reason, tokens in and out; of each result.
for index = 1, #ARGV, 7 do
  local id, number, success, result, reason, tokens_in, tokens_out = unpack(ARGV, index, index + 6)
  local lines, job = p .. 'lines:' .. id, p .. 'job:' .. id
  if may_settle(id) and redis.call('HEXISTS', lines, number) == 1
    and redis.call('HSETNX', p .. 'results:' .. id, number, result) == 1 then
    withdraw(id, number)
    count_bytes(id, #result)
    redis.call('HINCRBY', job, success == '1' and 'succeeded' or 'failed', 1)
    redis.call('HINCRBY', job, 'input_tokens', tokens_in)
    redis.call('HINCRBY', job, 'output_tokens', tokens_out)
    if reason ~= '' then
      redis.call('HSET', job, 'reason', reason)
    end
    if success == '1' then
      count_bytes(id, 0 - redis.call('HSTRLEN', lines, number))
      redis.call('HDEL', lines, number)
      redis.call('HDEL', p .. 'attempts:' .. id, number)
    end
    local state, all, succeeded, failed = unpack(redis.call('HMGET', job,
      'state', 'lines', 'succeeded', 'failed'))
    if state == 'in_progress' and succeeded + failed >= tonumber(all) then
      schedule(id)
      tell()
    end
  end
end
"""

PUT_BACK = """
-- ARGV: owner, then id, number, due in ms, reason, and 1 where the attempt counts; of each line.
for index = 2, #ARGV, 5 do
  local id, number, due_ms, reason, counts = unpack(ARGV, index, index + 4)
  if held_by(ARGV[1], id, number) then
    withdraw(id, number)
    if counts ~= '1' then
      redis.call('HINCRBY', p .. 'attempts:' .. id, number, -1)
    end
    redis.call('HINCRBY', p .. 'job:' .. id, 'repeats', 1)
    redis.call('HSET', p .. 'job:' .. id, 'reason', reason)
    offer(id, number, due_ms)
  end
end
tell()
"""

FORGET_RESULTS = """
-- ARGV: id. Only where it has ended: what is taken up again needs them.
local id = ARGV[1]
if not ENDS[redis.call('HGET', p .. 'job:' .. id, 'state')] then
  return
end
local bytes = 0
for _, number in ipairs(redis.call('HKEYS', p .. 'results:' .. id)) do
  bytes = bytes + redis.call('HSTRLEN', p .. 'results:' .. id, number)
end
if bytes > 0 then
  redis.call('UNLINK', p .. 'results:' .. id)  -- first, for a full server
  count_bytes(id, 0 - bytes)
end
"""

MODES_LEFT = """
-- ARGV: modes. Returns those of which jobs need models now.
local left = {}
for _, mode in ipairs(ARGV) do
  if redis.call('ZCOUNT', p .. 'wanting:' .. mode, '-inf', now_ms()) > 0 then
    table.insert(left, mode)
  end
end
return left
"""

TIDY = """
-- ARGV: ms. Forgets consumers that hold nothing, and have not asked for so long.
for _, stream in ipairs(redis.call('KEYS', p .. 'ready:*')) do
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
    local name, pending, idle = consumer[2], consumer[4], consumer[6]
    if pending == 0 and idle >= tonumber(ARGV[1]) then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, name)
    end
  end
end
"""
