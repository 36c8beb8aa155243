#!/usr/bin/env bash
# Runs once, when PostgreSQL makes its first files: a role and a database for each service, closed to the other.
set -euo pipefail

psql -v ON_ERROR_STOP=1 -v airflow="$AIRFLOW_DB_PASSWORD" -v mlflow="$MLFLOW_DB_PASSWORD" -U postgres -d postgres << 'SQL'
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE airflow OWNER airflow ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE mlflow OWNER mlflow ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE mlflow_auth OWNER mlflow ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE airflow, mlflow, mlflow_auth FROM PUBLIC;
SQL
