"""The torch side: catalogue, user encoder, cached keys and values, scores. Knows no Kafka."""
