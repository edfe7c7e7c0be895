#!/bin/sh
# Prints recommendations and erasures (null) as they are committed, with Kafka's own console consumer:
# consumer.sh HOST:PORT TOPIC [ITS OPTIONS, SUCH AS --group NAME OR --from-beginning]
server=$1 topic=$2
shift 2
exec kafka-console-consumer.sh --bootstrap-server "$server" --topic "$topic" \
    --isolation-level read_committed --formatter-property print.key=true "$@"
