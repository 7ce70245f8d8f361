#!/usr/bin/env bash
# A run on the nodes of a SLURM allocation: Ray on each of them, the run on the first. All nodes must see the project's
# folder, from which it is submitted after `./run.sh --version` and Ray were set up there (see README.md beside this):
#   sbatch --nodes=2 --gpus-per-node=8 --time=04:00:00 src/analyticup/engine/slurm.sh --config configs/paper.yaml data.dir=data
#SBATCH --job-name=analyticup
#SBATCH --ntasks-per-node=1
# Alone on its nodes: at its end every Ray there is stopped.
#SBATCH --exclusive
# A node that is lost does not end the others, and before the time is up the run is interrupted as by Ctrl-C.
#SBATCH --no-kill
#SBATCH --signal=TERM@120
set -euo pipefail

root="${SLURM_SUBMIT_DIR:-$PWD}"
python="${ANALYTICUP_VENV:-$root/.venv}/bin/python"
[ -x "$root/run.sh" ] && [ -x "$python" ] || {
  echo "slurm.sh: $root is no project that was set up; call ./run.sh --version there, and sbatch from there" >&2
  exit 2
}
nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export RAY_ADDRESS="${nodes%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))"
# Only this job's processes may use its Ray, which runs whatever it is told.
RAY_AUTH_TOKEN="$("$python" -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# As on one machine: workers step back behind nothing, and only the system ends what takes too much memory.
export RAY_worker_niceness=0 RAY_memory_monitor_refresh_ms=0
# It calls `ray`, which lies beside the interpreter.
export PATH="${python%/*}:$PATH"
exec srun --kill-on-bad-exit=0 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --include-dashboard=false -- "$root/run.sh" run machine.engine=ray "$@"
