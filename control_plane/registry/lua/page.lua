-- Reads adapters in order of `tenant/name`. Read-only.
--
-- KEYS  1 adapters (hash)   2 index (zset)
-- ARGV  1 lowest id, as ZRANGE BYLEX wants it   2 highest   3 at most this many
-- Returns  the stored adapters

local ids = redis.call('ZRANGE', KEYS[2], ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])
if #ids == 0 then return {} end
return redis.call('HMGET', KEYS[1], unpack(ids))
