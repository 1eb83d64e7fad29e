"""Does the controller's actions on Ray. The only folder that imports ray; its actors are thin."""

import os

# Ray reads these when it is imported, which only this folder does.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon a lost worker is noticed
os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")  # how soon a lost replica is
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more per run, of use on spot machines
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine a proxy starts slowly
os.environ.setdefault("RAY_worker_niceness", "0")  # not 15: training has a right to its core; ingest stands back
