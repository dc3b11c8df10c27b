"""Files that others may read, write or damage meanwhile.

atomic    a file or a folder gets its name when it is complete and on the disk
lock      what only one process may do
writer    which process of which machine wrote something, and whether that process has ended
manifest  SHA-256 of files, and JSON with a hash of itself
reading   JSON and PNG of unknown origin, within limits
shards    a job that n processes share through a folder
tensors   safetensors: where tensors lie in a file, and one file written tensor by tensor
"""
