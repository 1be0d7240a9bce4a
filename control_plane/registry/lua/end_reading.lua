-- A registration is READY, FAILED or gone: nobody reads for it any more.
--
-- KEYS  1 readings (hash)
-- ARGV  1 id, `tenant/name`   2 reader
-- Returns  1, or 0 when the reading is another's by now

local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored or cjson.decode(stored).reader ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
