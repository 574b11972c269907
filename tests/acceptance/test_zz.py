import time
import qserve as serve, pytest
from tests.fundamentals.apps import Gate
@pytest.mark.timeout(400)
def test_cycles(cluster):
    slow=[]
    for i in range(60):
        t=time.monotonic(); h=serve.run(Gate.options(name=f"G{i%3}", num_replicas=1+i%2).bind(), name=f"a{i%4}", timeout_s=20); a=time.monotonic()-t
        assert h.waiting.remote("x").result(timeout_s=5)==0
        t=time.monotonic()
        if i%3==2: serve.delete(f"a{i%4}")
        b=time.monotonic()-t
        slow.append((round(a,2),round(b,2)))
    print(sorted(slow)[-5:], sorted(s[1] for s in slow)[-5:])
