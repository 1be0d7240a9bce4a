-- Commits one change of one adapter: checks, writes, counts and announces it, all or nothing.
--
-- KEYS  1 adapters (hash)   2 names (hash)   3 index (zset)   4 version (integer)
--       5 changes (stream)  6 what the tenant holds (hash: adapters, bytes)
--       7… indexes (zsets) that it is in after the change, then those that it leaves
-- ARGV  1 id, `tenant/name`
--       2 resource version the change was made from; '' when the adapter must not exist yet
--       3 the adapter as JSON; after a deletion, as it was before
--       4 kind: ADDED, MODIFIED or DELETED
--       5 bytes gained (may be negative)
--       6 most adapters the tenant may have, '' for no limit
--       7 most bytes, '' for no limit
--       8 changes kept in the stream
--       9 how many of the names that follow it goes by after the change; it gives up the rest
--       10 how many indexes it is in after the change
--       11… `tenant/name-or-alias`
-- Returns  {'OK', resource version}
--          {'CONFLICT'}           the adapter is no longer the one the change was made from
--          {'TAKEN', name}        another adapter goes by this name
--          {'OVER', limit, maximum}

local id, kind, gained = ARGV[1], ARGV[4], tonumber(ARGV[5])
local first, last = 11, 10 + tonumber(ARGV[9])

local stored = redis.call('HGET', KEYS[1], id)
local version = stored and string.match(stored, '^%d+') or ''
if version ~= ARGV[2] then return {'CONFLICT'} end

for i = first, last do
  local owner = redis.call('HGET', KEYS[2], ARGV[i])
  if owner and owner ~= id then return {'TAKEN', ARGV[i]} end
end

if kind == 'ADDED' and ARGV[6] ~= '' then
  local adapters = tonumber(redis.call('HGET', KEYS[6], 'adapters') or 0)
  if adapters + 1 > tonumber(ARGV[6]) then return {'OVER', 'registered_adapters', ARGV[6]} end
end
if gained > 0 and ARGV[7] ~= '' then
  local bytes = tonumber(redis.call('HGET', KEYS[6], 'bytes') or 0)
  if bytes + gained > tonumber(ARGV[7]) then return {'OVER', 'adapter_bytes', ARGV[7]} end
end

local now = redis.call('INCR', KEYS[4])
local after = string.format('%.0f', now) .. ' ' .. ARGV[3]
if kind == 'DELETED' then
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('HINCRBY', KEYS[6], 'adapters', -1)
else
  redis.call('HSET', KEYS[1], id, after)
  redis.call('ZADD', KEYS[3], 0, id)
  if kind == 'ADDED' then redis.call('HINCRBY', KEYS[6], 'adapters', 1) end
end
redis.call('HINCRBY', KEYS[6], 'bytes', gained)
for i = 7, #KEYS do
  if i < 7 + tonumber(ARGV[10]) then
    redis.call('ZADD', KEYS[i], 0, id)
  else
    redis.call('ZREM', KEYS[i], id)
  end
end
for i = first, last do redis.call('HSET', KEYS[2], ARGV[i], id) end
for i = last + 1, #ARGV do redis.call('HDEL', KEYS[2], ARGV[i]) end
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[8], string.format('%.0f-0', now), 'kind', kind, 'adapter', after)
return {'OK', now}
