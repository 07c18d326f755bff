def write_report(plan, *, as_json=False):
    return 0
