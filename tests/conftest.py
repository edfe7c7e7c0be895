from stream_rec.cores import share_cores

share_cores()  # before any test imports torch
