-- A replica begins to read a source: its lease on the registration, unless another reads it.
--
-- KEYS  1 readings (hash)
-- ARGV  1 id, `tenant/name`   2 reader   3 the reading as JSON   4 lease in ms
-- Returns  1, or 0 when another reader's lease runs

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored then
  local held = cjson.decode(stored)
  if held.reader ~= ARGV[2] and held.until_ms > now_ms then return 0 end
end
local reading = cjson.decode(ARGV[3])
reading.reader, reading.until_ms = ARGV[2], now_ms + ARGV[4]
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(reading))
return 1
