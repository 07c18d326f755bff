"""Plan, run, resume and report recipes. Free of torch, verl, vllm and Ray."""
