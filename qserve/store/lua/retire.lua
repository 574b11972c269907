-- retire.lua: remove the queue of a deleted deployment once it is empty. From then on put.lua says that it is gone.
-- KEYS 1 queue, 2 front, 3 delayed, 4 asleep.
-- Returns 1 when removed or gone already, 0 while calls are in it, or delayed.  Cost O(1).
if redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) + redis.call('ZCARD', KEYS[3]) > 0 then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[4])
return 1
