-- Counts one request of a canary or of its stable revision, and sums up the window.
--
-- KEYS  1 the trial's window (hash)
-- ARGV  1 arm: stable or trial   2 failed: 0 or 1   3 first-token time in us, '' for none   4 window, ms
-- Returns  {requests, failed, first tokens, their time in us} of the stable arm, then of the trial
--
-- A field is `<bucket> <arm> <what>`. Ten buckets make a window; the oldest leaves as a whole, so
-- the window is between 9/10 and 10/10 of its length.

local BUCKETS = 10
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = math.floor(now_ms * BUCKETS / tonumber(ARGV[4]))

local function count(what, amount)
  redis.call('HINCRBY', KEYS[1], string.format('%.0f %s %s', bucket, ARGV[1], what), amount)
end
count('requests', 1)
count('failed', ARGV[2])
if ARGV[3] ~= '' then
  count('first_tokens', 1)
  count('first_token_us', ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[4])

local sums = {}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local of, arm, what = string.match(stored[i], '^(%d+) (%l+) ([%l_]+)$')
  if tonumber(of) <= bucket - BUCKETS then
    redis.call('HDEL', KEYS[1], stored[i])
  else
    sums[arm .. what] = (sums[arm .. what] or 0) + tonumber(stored[i + 1])
  end
end

local reply = {}
for _, arm in ipairs({'stable', 'trial'}) do
  for _, what in ipairs({'requests', 'failed', 'first_tokens', 'first_token_us'}) do
    reply[#reply + 1] = sums[arm .. what] or 0
  end
end
return reply
