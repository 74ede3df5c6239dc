#!/bin/sh
# Stands for `rocmforge-worker` in the fleet's tests: called as `worker.sh serve --socket PATH …`, it becomes the test
# executable itself, whose test `fake_worker` then speaks the protocol on PATH. A script, because the test harness
# would refuse the worker's own arguments.
FAKE_WORKER_SOCKET="$3" exec "$FAKE_WORKER_EXECUTABLE" --exact fake_worker --nocapture --test-threads 1
