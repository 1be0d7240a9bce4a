-- A worker reported: renew its lease and, when it holds or does something else now, its record.
--
-- KEYS  1 record (hash)  2 changes (stream)  3 what it holds (hash)
-- ARGV  1 worker id  2 session  3 lease in ms  4 retention in ms  5 length of the stream
--       6 what is written: '' (nothing differs), 'whole' or 'change'
--       7 body: who it is and what it does  8 for 'change': all of the change, for the stream
--       9 how many digests follow, each with what is held, then the digests that are gone
-- Returns the time in ms, or 0 when another stream speaks for the worker.
if redis.call('HGET', KEYS[1], 'session') ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'lease_ms', now_ms + ARGV[3], 'report_ms', now_ms)
local entry = {'worker', ARGV[1], 'what', 'lease', 'lease_ms', ARGV[3]}
if ARGV[6] ~= '' then
  if ARGV[6] == 'whole' then
    redis.call('DEL', KEYS[3])
  end
  local last = 9 + 2 * ARGV[9]
  for i = 10, last, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
  for i = last + 1, #ARGV do redis.call('HDEL', KEYS[3], ARGV[i]) end
  redis.call('HSET', KEYS[1], 'body', ARGV[7])
  local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
  if ARGV[6] == 'whole' then
    entry = {'worker', ARGV[1], 'what', 'record'}
  else
    entry = {'worker', ARGV[1], 'what', 'change', 'lease_ms', ARGV[3],
      'version', version, 'change', ARGV[8], 'now_ms', now_ms}
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', unpack(entry))
return now_ms
