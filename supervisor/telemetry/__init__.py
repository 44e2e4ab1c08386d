"""What memory really does: NVML, AMD and host readings as samples."""
