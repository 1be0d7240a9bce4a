-- Takes up one reading whose reader is gone.
--
-- KEYS  1 readings (hash): those of sources that are slow, so a few at any time
-- ARGV  1 reader   2 lease in ms
-- Returns  {id, the reading as JSON}, or nil when every reader lives

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local reading = cjson.decode(all[i + 1])
  if reading.until_ms <= now_ms then
    reading.reader, reading.until_ms, reading.attempts = ARGV[1], now_ms + ARGV[2], reading.attempts + 1
    local text = cjson.encode(reading)
    redis.call('HSET', KEYS[1], all[i], text)
    return {all[i], text}
  end
end
return nil
