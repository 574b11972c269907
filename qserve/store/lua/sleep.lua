-- sleep.lua: put a deployment without replicas to sleep: remove its queue if it is empty, and have the next call tell.
-- KEYS 1 queue, 2 front, 3 asleep.  ARGV 1 what put.lua tells: a channel, a blank, an event.
-- Returns 1 when it sleeps, 0 when a call is in its queue, or when it is gone.  Cost O(1).
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.call('EXISTS', KEYS[3]) end
if redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2])
return 1
