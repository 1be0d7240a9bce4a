-- Claims a slot of one worker for one request, and charges the load that it takes to fill it.
--
-- KEYS  for each scope, the tenant's first:  limits (hash)   buckets (hash)   claims (zset by expiry)
-- ARGV  1 place, `<worker> <digest>`   2 request id   3 life of the claim, ms   4 cold: 0 or 1
--       5–9 the tenant's defaults, in the order of LIMITS; '' for no limit
--       10 a place that was vacated just now, '' for none
--       11 how many places workers report in slots for the tenant, 12… these,
--       then those of the second scope
-- Returns  {'OK', 1 when a load was charged, else 0}
--          {'OVER', 'resident_slots', maximum, 'tenant' or 'adapter' (whose), place in use, …}
--          {'OVER', 'cold_loads_per_minute', maximum, microseconds or ''}
--
-- A member of claims is `<worker> <digest> <request>` while the request runs, `<worker> <digest>` for a
-- moment after it, until reports show where the adapter is. Reports are late; claims make up for it.

local place, ttl_ms, cold = ARGV[1], tonumber(ARGV[3]), ARGV[4] == '1'
local now = now_us()

local function places(key, from, count)
  local taken, num, running = {}, 0, {}
  local function take(one)
    if not taken[one] then taken[one], num = true, num + 1 end
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  redis.call('ZREM', key, ARGV[10])
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    local at, request = string.match(member, '^(%S+ %S+) ?(%S*)$')
    take(at)
    if request ~= '' then running[#running + 1] = at end
  end
  for i = from, from + count - 1 do take(ARGV[i]) end
  return taken, num, running
end

local charges, from = {}, 12
for first = 1, #KEYS, 3 do
  local count = first == 1 and tonumber(ARGV[11]) or #ARGV - from + 1
  local limits = read_limits(KEYS[first], first == 1 and {unpack(ARGV, 5, 9)} or {})
  local taken, num, running = places(KEYS[first + 2], from, count)
  from = from + count
  local most, n = limits.resident_slots, limits.cold_loads_per_minute
  if most and not taken[place] and num + 1 > most then
    return {'OVER', 'resident_slots', string.format('%.0f', most), first == 1 and 'tenant' or 'adapter', unpack(running)}
  end
  -- Somebody who claimed the place before is loading it already.
  if n and cold and not taken[place] then
    local level = read_level(KEYS[first + 1], 'cold_loads_per_minute', n, now)
    if level < TOKEN then
      local wait = wait_us(n, level, 1)
      return {'OVER', 'cold_loads_per_minute', string.format('%.0f', n), wait and string.format('%.0f', wait) or ''}
    end
    charges[first] = {n = n, level = level - TOKEN}
  end
end

for first = 1, #KEYS, 3 do
  if charges[first] then
    write_level(KEYS[first + 1], 'cold_loads_per_minute', charges[first].n, charges[first].level, now)
  end
  redis.call('ZADD', KEYS[first + 2], string.format('%.0f', now + ttl_ms * 1000), place .. ' ' .. ARGV[2])
  extend(KEYS[first + 2], ttl_ms)
end
return {'OK', next(charges) and 1 or 0}
