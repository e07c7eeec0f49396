#!/bin/sh
# The service by curl: sh curl.sh http://127.0.0.1:8000 front.jpg back.jpg
# Where it has tokens: SHELFMARK_TOKEN=… sh curl.sh …
set -eu
[ $# -eq 3 ] || { echo "usage: sh curl.sh URL FRONT BACK" >&2; exit 2; }
url=$1 front=$2 back=$3
# As a file that curl reads, a token is in no list of processes.
auth() { printf 'header = "Authorization: Bearer %s"\n' "${SHELFMARK_TOKEN-}"; }

# One product, with two photos.
auth | curl --config - --fail-with-body --silent --show-error \
  --form images=@"$front" --form images=@"$back" --form product_id=mug-1 "$url/v1/categorize"
echo

# Two products in one request, within 10 seconds; where the service is full, curl tries again after Retry-After.
auth | curl --config - --fail-with-body --silent --show-error --retry 5 --header 'X-Request-Timeout: 10' \
  --form images.0=@"$front" --form product_id.0=mug-1 \
  --form images.1=@"$back" --form product_id.1=mug-2 "$url/v1/categorize"
echo

# What is in service, and whether requests are taken.
auth | curl --config - --fail-with-body --silent --show-error "$url/v1/release"
echo
curl --fail-with-body --silent --show-error "$url/readyz"
echo
