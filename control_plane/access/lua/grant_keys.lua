-- Reads the keys that sign grants, makes the next one when it is time, and drops the oldest.
--
-- KEYS  1 keys (zset; a member is `<key id> <private key>`, its score the time it signs from, Unix ms)
-- ARGV  1 a fresh key, stored only when one is due   2 life of a key, ms
--       3 how long a key is announced before it signs, ms
--       4 how long a key is kept after its successor began to sign, ms
-- Returns  {now in ms, key, time it signs from, …}, oldest first; never empty

local life, announced, kept = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if not newest[1] then
  redis.call('ZADD', KEYS[1], now, ARGV[1])
elseif now >= tonumber(newest[2]) + life - announced then
  redis.call('ZADD', KEYS[1], now + announced, ARGV[1])
end

local keys = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local reply = {string.format('%.0f', now)}
for i = 1, #keys, 2 do
  local successor = tonumber(keys[i + 3] or '')
  if successor and successor + kept <= now then
    redis.call('ZREM', KEYS[1], keys[i])
  else
    reply[#reply + 1] = keys[i]
    reply[#reply + 1] = keys[i + 1]
  end
end
return reply
