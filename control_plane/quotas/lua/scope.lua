-- Functions for the scripts of this directory, sent before each of them: one scope of limits
-- (a tenant's, or one adapter's of it), its token buckets and its requests in flight.
--
-- A bucket of capacity n holds n tokens and refills n a minute, continuously. Levels are whole
-- numbers of 1/60,000,000 token, of which n a microsecond come back: no rounding, so a full bucket
-- of capacity n admits exactly n at once (doubles are whole up to 9e15: n up to 150 million).
-- A level below 0 is a debt (more was used than reserved). A bucket without a stored level is full;
-- it expires when it would be.

local TOKEN = 60000000

-- Redis' time in microseconds.
local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The limits of the hash `key`, each a number or nil (unlimited). `defaults` (a list in the order of
-- the names) hold when the hash does not exist.
local LIMITS = {
  'requests_per_minute', 'tokens_per_minute', 'concurrent_requests', 'resident_slots', 'cold_loads_per_minute',
}
local function read_limits(key, defaults)
  local limits, stored = {}, redis.call('EXISTS', key) == 1
  for i, name in ipairs(LIMITS) do
    local value = defaults[i]
    if stored then value = redis.call('HGET', key, name) end
    limits[name] = value and tonumber(value) -- '' is no number: nil
  end
  return limits
end

-- The present level of the bucket `name` (in units of 1/TOKEN) of capacity n.
local function read_level(key, name, n, now)
  local stored = redis.call('HMGET', key, name, name .. ':at_us')
  if not stored[1] then return n * TOKEN end
  return math.min(n * TOKEN, tonumber(stored[1]) + (now - tonumber(stored[2])) * n)
end

-- Extends the life of `key` to `ms` from now, never shortens it.
local function extend(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

-- Stores a level, until the bucket is full again.
local function write_level(key, name, n, level, now)
  redis.call('HSET', key, name, string.format('%.0f', level), name .. ':at_us', string.format('%.0f', now))
  extend(key, math.ceil((n * TOKEN - level) / n / 1000) + 1000)
end

-- Microseconds until the bucket has `tokens`; nil when its capacity is too small for ever.
local function wait_us(n, level, tokens)
  if n == 0 or tokens > n then return nil end
  return math.ceil((tokens * TOKEN - level) / n)
end

-- Number of requests in flight; those that expired are forgotten.
local function count_inflight(key, now)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  return redis.call('ZCARD', key)
end
