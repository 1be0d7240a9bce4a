-- Replaces a set of limits as a whole.
--
-- KEYS  1 limits (hash)
-- ARGV  field, value, …
-- Returns  1

redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
