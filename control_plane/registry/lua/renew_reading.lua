-- Extends a reader's lease.
--
-- KEYS  1 readings (hash)
-- ARGV  1 id, `tenant/name`   2 reader   3 lease in ms
-- Returns  1, or 0 when the reading is another's by now

local stored = redis.call('HGET', KEYS[1], ARGV[1])
local reading = stored and cjson.decode(stored)
if not reading or reading.reader ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
reading.until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(reading))
return 1
