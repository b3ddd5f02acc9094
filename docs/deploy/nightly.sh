#!/bin/sh
# The nightly run: evaluates the settings, checks the evaluation, trains, and deploys the new bundle.
#
#     nightly.sh [CONDITION ...]
#
# A CONDITION is one of `towers audit --fail-if`, such as 'recall@50 < 0.2'. The run ends at the first command that
# fails, with its exit status (3: a condition holds), and the service goes on with the bundle that it has.
#
# In the environment: TOWERS_HOME, the folder of run.toml and runs/ (default: the working folder); TOWERS_LIVE, the
# store of live writes, which the new index then contains; KEEP_DAYS, the age in days at which bundles of earlier
# nights are removed (default: 14), except the one in production and the one before it.
set -eu
cd "${TOWERS_HOME:-.}"
for condition; do
    set -- "$@" --fail-if "$condition"
    shift
done

bundle="runs/night-$(date -u +%Y%m%dT%H%M%S)"
towers evaluate run.toml --output evaluation
towers audit evaluation "$@"
towers train run.toml --output "$bundle"
towers index "$bundle" ${TOWERS_LIVE:+--live "$TOWERS_LIVE"}
towers deploy "$bundle"

find runs -mindepth 1 -maxdepth 1 -type d -name 'night-*' -mtime "+${KEEP_DAYS:-14}" | while read -r old; do
    for link in runs/production runs/production.previous; do
        if [ "$(readlink -f "$link")" = "$(readlink -f "$old")" ]; then continue 2; fi
    done
    rm -r -- "$old"
done
