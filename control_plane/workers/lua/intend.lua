-- An operator cordons, drains or uncordons a worker. It outlives the worker's streams.
-- A drain is for good: its engine takes no requests any more. hello.lua ends it with the process.
--
-- KEYS  1 record (hash)  2 changes (stream)
-- ARGV  1 worker id  2 intent: ready, cordoned or draining  3 length of the stream
-- Returns 1, 0 when there is no such worker, -1 when it drains and would have to stop that.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if ARGV[2] ~= 'draining' and redis.call('HGET', KEYS[1], 'intent') == 'draining' then
  return -1
end
redis.call('HSET', KEYS[1], 'intent', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'worker', ARGV[1], 'what', 'record')
return 1
