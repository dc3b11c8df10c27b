"""Files that other processes may read, write or damage at any time.

atomic    a file or folder gets its name when it is complete and on the disk
lock      a task that only one process may do
writer    which process on which machine wrote something, and whether it has ended
manifest  SHA-256 of files, and JSON with a hash of itself
reading   JSON and PNG of unknown origin, within limits
shards    a job that n processes share through a folder
tensors   safetensors: offsets of the tensors in a file, and files written tensor by tensor
"""
