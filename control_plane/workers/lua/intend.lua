-- An operator cordons, drains or uncordons a worker. It outlives the worker's streams.
--
-- KEYS  1 record (hash)  2 changes (stream)
-- ARGV  1 worker id  2 intent: ready, cordoned or draining  3 length of the stream
-- Returns 1, or 0 when there is no such worker.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'intent', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'worker', ARGV[1], 'what', 'record')
return 1
