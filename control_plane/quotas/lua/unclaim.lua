-- Ends or extends the claim of one request.
--
-- KEYS  as claim.lua
-- ARGV  1 place   2 request id   3 ms to live on   4 what: renew or end
--       5–9 as claim.lua
--       10 loads to give back (1: charged but not needed, -1: needed but not charged, 0)
-- Returns  1, or 0 when there was no such claim

local now, found = now_us(), 0
local till = string.format('%.0f', now + tonumber(ARGV[3]) * 1000)
local member, back = ARGV[1] .. ' ' .. ARGV[2], tonumber(ARGV[10])
for first = 1, #KEYS, 3 do
  if redis.call('ZSCORE', KEYS[first + 2], member) then
    found = 1
    if ARGV[4] == 'renew' then
      redis.call('ZADD', KEYS[first + 2], till, member)
    else
      redis.call('ZREM', KEYS[first + 2], member)
      redis.call('ZADD', KEYS[first + 2], till, ARGV[1])
    end
    extend(KEYS[first + 2], tonumber(ARGV[3]))
  end
  local n = read_limits(KEYS[first], first == 1 and {unpack(ARGV, 5, 9)} or {}).cold_loads_per_minute
  if n and n > 0 and back ~= 0 then
    local level = read_level(KEYS[first + 1], 'cold_loads_per_minute', n, now) + back * TOKEN
    write_level(KEYS[first + 1], 'cold_loads_per_minute', n,
      math.max(-n * TOKEN, math.min(n * TOKEN, level)), now)
  end
end
return found
