-- resign.lua: give up the leadership if it is still this controller's, so that a stand-by need not wait.
-- KEYS 1 leader.  ARGV 1 holder ("term:id").  Returns 1 when given up.  Cost O(1).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
