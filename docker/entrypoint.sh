#!/usr/bin/env bash
# Waits for what a service needs, gives Airflow its password file, and becomes the service.
#
#   entrypoint.sh init             make or upgrade Airflow's database, make the pool `gpu`; ends
#   entrypoint.sh airflow PART     a part of Airflow, once the database is as this image's Airflow needs it
#   entrypoint.sh mlflow-server    MLflow behind its own authentication; makes or upgrades its databases first
#   entrypoint.sh COMMAND …        anything else, at once
set -euo pipefail

if [ -n "${AIRFLOW_ADMIN_PASSWORD:-}" ]; then
  (umask 077 && printf '{"admin": "%s"}\n' "$AIRFLOW_ADMIN_PASSWORD" > "$AIRFLOW_HOME/passwords.json")
fi

# NIGHTSIFT_WAIT_FOR is HOST:PORT …: after a reboot, and with engines that know no health conditions, all services start
# at once.
for address in ${NIGHTSIFT_WAIT_FOR:-}; do
  until (exec 3<> "/dev/tcp/${address%:*}/${address#*:}") 2> /dev/null; do sleep 1; done
done

case ${1:-} in
  init)
    airflow db migrate
    # A pool that is there stays as it is: an operator may have changed its slots.
    airflow pools get gpu > /dev/null 2>&1 \
      || airflow pools set gpu "$GPU_SLOTS" "Tasks that train or score: as many at once as there are GPUs"
    ;;
  mlflow-server)
    # The file is the only way to tell MLflow where its users are.
    (umask 077 && printf '[mlflow]\ndefault_permission = READ\ndatabase_uri = %s\n' "$MLFLOW_AUTH_BACKEND" \
      > "$AIRFLOW_HOME/mlflow_auth.ini")
    mlflow db upgrade "$MLFLOW_BACKEND"
    python -m mlflow.server.auth db upgrade --url "$MLFLOW_AUTH_BACKEND"
    export MLFLOW_AUTH_CONFIG_PATH=$AIRFLOW_HOME/mlflow_auth.ini
    # A worker that is busy (starting takes half a minute of a busy core) is not to be killed for five seconds' silence.
    exec mlflow server --uvicorn-opts "--timeout-worker-healthcheck 120" --workers 2 \
      --app-name basic-auth --host 0.0.0.0 --port 5000 \
      --backend-store-uri "$MLFLOW_BACKEND" --serve-artifacts --artifacts-destination /var/lib/mlflow
    ;;
  airflow)
    [ -z "${NIGHTSIFT_WAIT_FOR:-}" ] || airflow db check-migrations --migration-wait-timeout 600
    exec "$@"
    ;;
  *)
    exec "$@"
    ;;
esac
