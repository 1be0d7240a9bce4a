-- Finds an adapter by its name or an alias. Read-only.
--
-- KEYS  1 adapters (hash)   2 names (hash)
-- ARGV  1 `tenant/name-or-alias`
-- Returns  the stored adapter, or false

local id = redis.call('HGET', KEYS[2], ARGV[1])
return id and redis.call('HGET', KEYS[1], id)
