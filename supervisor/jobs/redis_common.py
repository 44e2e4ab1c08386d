"""How the Redis queue stands on its server, and what all its scripts begin with, in Lua.

Keys, behind the prefix:

    job:ID        hash: the record, its state and counts, and the last number of its lines
    lines:ID      hash: the content of each line that has not succeeded, by number
    results:ID    hash: the result of each line that is settled; the first one stays (HSETNX)
    attempts:ID   hash: how often each line was claimed
    places:ID     hash: where a line stands that may be claimed: rank of the stream, and entry
    ready:KIND:R  stream: lines that may be claimed, of jobs of a kind with a priority of that rank;
                  an entry names job and number. Its consumer group knows who has claimed which
    later:KIND    sorted set: lines that may be claimed later, by when
    due:KIND      sorted set: jobs with which something is to be done, by when
    jobs, jobs:KIND  sorted sets: all jobs, in the order in which they came
    wanting:MODE  sorted set: jobs whose lines need models of a mode, by when they may be worked on
    counts        hash: how many jobs there are, by kind and state
    last, bytes   the number of the last job that came, and what all of them take
    news          stream of one entry: that there may be something to claim

The streams are cleared lazily: an entry that is not where its line stands any more, or whose job is
over, is deleted by the claim that comes upon it. Time is the server's, in milliseconds, so that
the clocks of controllers need not agree.

A consumer group counts for how long each entry has been idle, and hands over what has been for
longer than whoever asks wants (XAUTOCLAIM). Leases differ, so a claim sets what it takes back by
that much that it has been idle for LONGEST_LEASE_MS when its lease is over.

A server whose memory is full refuses a script whose first write may take memory (to count is such
a one), and lets all others through. What makes room, or ends what takes it, so begins with a write
that only removes.

Each script (`redis_scripts`) is run behind COMMON.
"""

COMMON = """
local p = KEYS[1]
local GROUP = 'supervisors'
local LONGEST_LEASE_MS = 24 * 3600 * 1000
local ENDS = {completed = true, failed = true, expired = true, cancelled = true}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function tell()
  redis.call('XADD', p .. 'news', 'MAXLEN', 1, '*', 'n', '')
end

local function ready(kind, rank)
  return p .. 'ready:' .. kind .. ':' .. rank
end

local function count_bytes(id, bytes)
  redis.call('INCRBY', p .. 'bytes', bytes)
  redis.call('HINCRBY', p .. 'job:' .. id, 'bytes', bytes)
end

local function may_settle(id)
  local state = redis.call('HGET', p .. 'job:' .. id, 'state')
  return state == 'validating' or state == 'in_progress'
end

local function kind_of(id)
  return redis.call('HGET', p .. 'job:' .. id, 'kind')
end

-- The stream and the entry of a line; none where it stands in `later`, or is settled.
local function place_of(id, number)
  local place = redis.call('HGET', p .. 'places:' .. id, number)
  if place then
    local rank, entry = string.match(place, '^(%d+) (.+)$')
    return ready(kind_of(id), rank), entry
  end
end

local function offer(id, number, due_ms)
  local kind, rank = unpack(redis.call('HMGET', p .. 'job:' .. id, 'kind', 'rank'))
  if tonumber(due_ms) > now_ms() then
    redis.call('ZADD', p .. 'later:' .. kind, due_ms, id .. ' ' .. number)
  else
    local stream = ready(kind, rank)
    if redis.call('EXISTS', stream) == 0 then
      redis.call('XGROUP', 'CREATE', stream, GROUP, 0, 'MKSTREAM')
    end
    local entry = redis.call('XADD', stream, '*', 'job', id, 'number', number)
    redis.call('HSET', p .. 'places:' .. id, number, rank .. ' ' .. entry)
  end
end

local function withdraw(id, number)
  local stream, entry = place_of(id, number)
  if stream then
    redis.call('XACK', stream, GROUP, entry)
    redis.call('XDEL', stream, entry)
    redis.call('HDEL', p .. 'places:' .. id, number)
  else
    redis.call('ZREM', p .. 'later:' .. kind_of(id), id .. ' ' .. number)
  end
end

-- The stream and the entry of a line that this owner has claimed; none where it has not.
local function held_by(owner, id, number)
  local stream, entry = place_of(id, number)
  if stream and may_settle(id) then
    local pending = redis.call('XPENDING', stream, GROUP, entry, entry, 1)
    if pending[1] and pending[1][2] == owner then
      return stream, entry
    end
  end
end

local function lease(stream, owner, entry, lease_ms)
  local idle_ms = LONGEST_LEASE_MS - lease_ms
  redis.call('XCLAIM', stream, GROUP, owner, 0, entry, 'IDLE', idle_ms, 'JUSTID')
end

local function due_set(id)
  return p .. 'due:' .. kind_of(id)
end

local function has_lines_left(id)
  local state, lines, succeeded, failed = unpack(redis.call('HMGET', p .. 'job:' .. id, 'state',
    'lines', 'succeeded', 'failed'))
  return state == 'in_progress' and succeeded + failed < tonumber(lines)
end

-- When something is to be done with the job itself, as `Job.is_due`; '' where nothing is.
local function due_at(id)
  local state, expires = unpack(redis.call('HMGET', p .. 'job:' .. id, 'state', 'expires_ms'))
  if has_lines_left(id) then
    return expires
  end
  return (not state or ENDS[state]) and '' or now_ms()
end

-- Notes when something is to be done with the job, and whether it needs models.
local function schedule(id)
  local state, mode, not_before = unpack(redis.call('HMGET', p .. 'job:' .. id, 'state', 'mode',
    'not_before_ms'))
  mode = mode or ''  -- of a job from before there was one
  local due = due_at(id)
  if mode ~= '' and (has_lines_left(id) or state == 'validating') then
    redis.call('ZADD', p .. 'wanting:' .. mode, not_before, id)
  else
    redis.call('ZREM', p .. 'wanting:' .. mode, id)
  end
  if due == '' then
    redis.call('ZREM', due_set(id), id)
  else
    redis.call('ZADD', due_set(id), due, id)
  end
end

local FIELDS = {'record', 'state', 'rank', 'not_before_ms', 'expires_ms', 'lines', 'reason', 'mode'}

local function count_job(id, step)
  local kind, state = unpack(redis.call('HMGET', p .. 'job:' .. id, 'kind', 'state'))
  if state then
    redis.call('HINCRBY', p .. 'counts', kind .. ' ' .. state, step)
  end
end

local function write(id, first)
  count_job(id, -1)
  for index, field in ipairs(FIELDS) do
    redis.call('HSET', p .. 'job:' .. id, field, ARGV[first + index - 1])
  end
  count_job(id, 1)
  schedule(id)
end
"""
