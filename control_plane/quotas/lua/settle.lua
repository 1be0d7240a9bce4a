-- Ends a reservation with the true use: frees its place, refunds what it did not use, counts.
--
-- KEYS  as reserve.lua
-- ARGV  1 request id   2 prompt tokens used   3 completion tokens used
--       4–8 as reserve.lua
--       9 how long a repeated settle is recognised, ms
-- Returns  1, or 0 when it was settled already and nothing was done
--
-- A reservation that expired refunds nothing (what it reserved stays charged), but its use counts.

local id, used = ARGV[1], tonumber(ARGV[2]) + tonumber(ARGV[3])
local now = now_us()
if redis.call('HEXISTS', KEYS[2], 'settled') == 1 then return 0 end

local i = 0
for first = 3, #KEYS, 3 do
  i = i + 1
  redis.call('ZREM', KEYS[first + 2], id)
  local charged = tonumber(redis.call('HGET', KEYS[2], 'charged:' .. i) or '')
  local n = read_limits(KEYS[first], first == 3 and {unpack(ARGV, 4, 8)} or {}).tokens_per_minute
  if charged and n and n > 0 and charged ~= used then
    local level = read_level(KEYS[first + 1], 'tokens_per_minute', n, now) + (charged - used) * TOKEN
    -- The debt is at most a minute's worth: one wrong estimate must not shut a tenant out for long.
    level = math.max(-n * TOKEN, math.min(n * TOKEN, level))
    write_level(KEYS[first + 1], 'tokens_per_minute', n, level, now)
  end
end

redis.call('HSET', KEYS[2], 'settled', 1)
redis.call('PEXPIRE', KEYS[2], ARGV[9])
redis.call('HINCRBY', KEYS[1], 'prompt_tokens', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'completion_tokens', ARGV[3])
return 1
