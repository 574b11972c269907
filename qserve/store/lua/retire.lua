-- retire.lua: remove the queue of a deleted deployment once it is empty. From then on put.lua says that it is gone.
-- KEYS 1 queue, 2 front.  Returns 1 when removed or gone already, 0 while calls are in it.  Cost O(1).
if redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) > 0 then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
