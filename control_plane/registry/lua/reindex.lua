-- Puts an adapter into the indexes that it belongs into, unless it changed since it was read.
--
-- KEYS  1 adapters (hash)   2… indexes (zsets)
-- ARGV  1 id, `tenant/name`   2 resource version that was read
-- Returns  1, or 0 when nothing was done: whoever changed it has indexed it

local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored or string.match(stored, '^%d+') ~= ARGV[2] then return 0 end
for i = 2, #KEYS do redis.call('ZADD', KEYS[i], 0, ARGV[1]) end
return 1
