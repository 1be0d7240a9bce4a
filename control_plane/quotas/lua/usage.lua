-- Reads what a tenant uses now. Read-only.
--
-- KEYS  1 totals of the tenant (hash)   2 its limits (hash)   3 its buckets (hash)   4 in flight (zset)
-- ARGV  1–5 the defaults, in the order of LIMITS; '' for no limit
-- Returns  {requests in flight, remaining requests or '', remaining tokens or '', remaining cold loads or '',
--           totals (field, value, …)}

local now = now_us()
local limits = read_limits(KEYS[2], {unpack(ARGV, 1, 5)})

local function remaining(name)
  local n = limits[name]
  if not n then return '' end
  return string.format('%.0f', math.max(0, math.floor(read_level(KEYS[3], name, n, now) / TOKEN)))
end

return {
  redis.call('ZCOUNT', KEYS[4], string.format('(%.0f', now), '+inf'),
  remaining('requests_per_minute'),
  remaining('tokens_per_minute'),
  remaining('cold_loads_per_minute'),
  redis.call('HGETALL', KEYS[1]),
}
