"""Wrong answers to the exercises of lesson 13, and a part of the hint that each must get."""

MISTAKES = [
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * (step % T_0) / T_0)) / 2
""", "the length of the first"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    start, length = 0, T_0
    while step >= start + length:
        start, length = start + length, start + length
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * (step - start) / length)) / 2
""", "begin at 20, 40, 80"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    end = length = T_0
    while step >= end:
        length *= T_mult
        end += length
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * step / length)) / 2
""", "from the beginning of the cycle"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    length = T_0
    while step > length:
        step -= length
        length *= T_mult
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * step / length)) / 2
""", "all where steps is 20, 60, 140"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    length = T_0
    while step >= length:
        step -= length
        length *= T_mult
    return eta_min + lr * (1 + math.cos(math.pi * step / length)) / 2
""", "not a shift"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    length = T_0
    while step >= length:
        step -= length
        length *= T_mult
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * step / (length - 1))) / 2
""", "not after T_i - 1"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step >= warmup_steps:
        return schedule(step)
    return schedule(0) * (start_factor + (1 - start_factor) * step / warmup_steps)
""", "step - warmup_steps"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step >= warmup_steps:
        return schedule(step - warmup_steps)
    return schedule(0) * (start_factor + (1 - start_factor) * step / (warmup_steps - 1))
""", "ends one step too early"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step >= warmup_steps:
        return schedule(step - warmup_steps)
    return schedule(0) * step / warmup_steps
""", "starts at 0"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    factor = min(1, start_factor + (1 - start_factor) * step / warmup_steps)
    return factor * schedule(step)
""", "begin after it"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step >= warmup_steps:
        return schedule(step - warmup_steps)
    return schedule(0) * (start_factor + step / warmup_steps)
""", "1 + start_factor"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step > warmup_steps:
        return schedule(step - warmup_steps - 1)
    return schedule(0) * (start_factor + (1 - start_factor) * step / warmup_steps)
""", "from there on schedule(step - warmup_steps)"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    length = T_0
    if step >= length:
        step -= length
        length *= T_mult
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * step / length)) / 2
""", "one cycle at most"),
    ("13.1", """
def restarts_lr(step, lr, T_0, T_mult, eta_min):
    length = T_0
    while step >= length:
        step -= length
        length += T_0
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * step / length)) / 2
""", "not T_mult times as long"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step >= warmup_steps:
        return schedule(step - warmup_steps)
    return schedule(0) * (start_factor + (1 - start_factor) * (step + 1) / warmup_steps)
""", "one step ahead"),
    ("13.2", """
def warmed_up_lr(step, schedule, warmup_steps, start_factor):
    if step >= warmup_steps:
        return schedule(step - warmup_steps)
    return start_factor + (schedule(0) - start_factor) * step / warmup_steps
""", "not a rate"),
]
