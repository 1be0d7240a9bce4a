-- A worker's stream died: its lease ends now, unless another stream speaks for it already.
--
-- KEYS  1 record (hash)  2 changes (stream)
-- ARGV  1 worker id  2 session  3 length of the stream
-- Returns 1, or 0 when there was nothing to end.
if redis.call('HGET', KEYS[1], 'session') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'lease_ms', 0)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'worker', ARGV[1], 'what', 'record')
return 1
