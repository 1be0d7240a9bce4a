-- Admits one request under every limit of its scopes, or says which limit refuses it.
--
-- KEYS  1 totals of the tenant (hash)   2 the reservation (hash)
--       then for each scope, the tenant's first:  limits (hash)   buckets (hash)   in flight (zset)
-- ARGV  1 request id   2 tokens to reserve   3 life of the reservation, ms
--       4–8 the tenant's defaults, in the order of LIMITS; '' for no limit
-- Returns  {'OK', tokens reserved, 1 when slots or cold loads are limited too, else 0}
--                                                       again for a repeated request id, at no charge
--          {'OVER', limit, maximum, microseconds}       until it may be admitted; '' when not known
--          {'SETTLED'}                                  the request id was used and has ended

local id, tokens, ttl_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_us()

local earlier = redis.call('HMGET', KEYS[2], 'tokens', 'settled', 'limits_slots')
if earlier[2] then return {'SETTLED'} end
if earlier[1] then return {'OK', earlier[1], tonumber(earlier[3])} end

local function refuse(limit, maximum, us)
  redis.call('HINCRBY', KEYS[1], 'rejected_requests', 1)
  return {'OVER', limit, string.format('%.0f', maximum), us and string.format('%.0f', us) or ''}
end

-- Checks first: nothing is charged unless everything is admitted.
local scopes, limits_slots = {}, 0
for first = 3, #KEYS, 3 do
  local scope = {buckets = KEYS[first + 1], inflight = KEYS[first + 2], charges = {}}
  local defaults = first == 3 and {unpack(ARGV, 4, 8)} or {}
  local limits = read_limits(KEYS[first], defaults)

  if limits.resident_slots or limits.cold_loads_per_minute then limits_slots = 1 end
  local most = limits.concurrent_requests
  if most and count_inflight(scope.inflight, now) >= most then
    return refuse('concurrent_requests', most, nil)
  end
  for _, rate in ipairs({{'requests_per_minute', 1}, {'tokens_per_minute', tokens}}) do
    local name, amount = rate[1], rate[2]
    local n = limits[name]
    if n then
      local level = read_level(scope.buckets, name, n, now)
      if level < amount * TOKEN or n == 0 then return refuse(name, n, wait_us(n, level, amount)) end
      scope.charges[name] = {n = n, level = level - amount * TOKEN}
    end
  end
  scopes[#scopes + 1] = scope
end

redis.call('HSET', KEYS[2], 'tokens', tokens, 'limits_slots', limits_slots)
for i, scope in ipairs(scopes) do
  for name, charge in pairs(scope.charges) do
    write_level(scope.buckets, name, charge.n, charge.level, now)
  end
  -- Settling refunds only what was charged: a limit may be set while the request runs.
  if scope.charges.tokens_per_minute then redis.call('HSET', KEYS[2], 'charged:' .. i, tokens) end
  redis.call('ZADD', scope.inflight, string.format('%.0f', now + ttl_ms * 1000), id)
  extend(scope.inflight, ttl_ms)
end
redis.call('PEXPIRE', KEYS[2], ttl_ms)
redis.call('HINCRBY', KEYS[1], 'requests', 1)
return {'OK', tokens, limits_slots}
