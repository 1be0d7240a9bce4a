-- Replaces a stored key, unless it changed or was revoked since it was read.
--
-- KEYS  1 keys (hash)
-- ARGV  1 key id   2 the record as it was read   3 the record after
-- Returns  1, or 0 when nothing was done

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
