-- Extends the life of a reservation that has not ended.
--
-- KEYS  as reserve.lua
-- ARGV  1 request id   2 life from now, ms
-- Returns  1, or 0 when it expired or was settled: its place may be another's by now

local id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local now = now_us()
local state = redis.call('HMGET', KEYS[2], 'tokens', 'settled')
if not state[1] or state[2] then return 0 end

for first = 3, #KEYS, 3 do
  redis.call('ZADD', KEYS[first + 2], 'XX', 'GT', string.format('%.0f', now + ttl_ms * 1000), id)
  extend(KEYS[first + 2], ttl_ms)
end
extend(KEYS[2], ttl_ms)
return 1
