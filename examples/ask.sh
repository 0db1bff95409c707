#!/bin/sh
# Ask a running server with curl. Usage: examples/ask.sh "Who discovered X-rays?" [URL]
# A server with keys: BTR_KEY=... examples/ask.sh ...
set -eu
question=${1:?"usage: $0 QUESTION [URL]"}
url=${2:-http://127.0.0.1:8080}
body=$(python3 -c 'import json, sys; print(json.dumps({"question": sys.argv[1], "top_k": 5}))' "$question")
curl --silent --show-error --fail-with-body "$url/v1/answer" \
  -H "Content-Type: application/json" -H "Authorization: Bearer ${BTR_KEY:-none}" -d "$body"
