"""A plan as text."""

from llamagen.training.plan import GIB, Plan


def page(plan: Plan) -> str:
    """A plan in words and one table."""
    config, shape = plan.config, plan.shape
    train, again = plan.hours(plan.step_flops * config.steps), plan.again_flops / (3 * plan.image_flops)
    data = f"{config.data.name}, {shape.num_positions} tokens an image of {shape.num_tokens:,}"
    lines = [
        f"{config.model.name}, {config.label}, {data}, {plan.precision}",
        f"parameters   {plan.parameters:,}, of them {plan.of_head:,} of the head",
        f"FLOPs        {plan.step_flops:.3g} a step of {config.batch_size} images, "
        f"{plan.step_flops * config.steps:.3g} in {config.steps:,} steps (3 x the matrix products of a forward pass)",
        f"hours        {train:,.1f} on {plan.processes} x {config.gpu} at {config.mfu:.0%} of "
        f"{plan.peak_flops / 1e12:,.0f} TFLOPs, {plan.hours(plan.validation_flops):,.1f} more for validations; "
        f"recomputed activations take {again:.0%} more",
        f"disk         {_disk(plan)}",
        "",
    ]
    if not plan.is_exact:
        lines.insert(1, f"a flat head of as many weights stands in for {config.head.name}: at most what it takes")
    return "\n".join([*lines, *_table(plan)])


def _disk(plan: Plan) -> str:
    most = plan.most_checkpoints
    codes = "codes of an unknown number of images" if plan.codes is None else f"codes {plan.codes / 1e9:.1f} GB"
    one, all_of_them = plan.checkpoint / 1e9, most * plan.checkpoint / 1e9
    return f"{codes}; a checkpoint {one:.1f} GB, {most} at most at once {all_of_them:.1f} GB"


def _table(plan: Plan) -> list[str]:
    share = plan.share / plan.config.micro_batches
    columns = ["weights", "optimizer", "average", "gradients", "gathered", "activations", "peak", "fit"]
    lines = [
        f"GiB on each GPU with {share:g} images a micro-batch; {plan.capacity / GIB:.0f} can be used "
        f"({plan.config.reserved_gib:g} reserved)",
        f"{'':16}" + "".join(f"{column:>12}" for column in columns),
    ]
    for way in plan.memory:
        parts = way.weights, way.optimizer, way.average, way.gradients, way.gathered
        numbers = [*parts, way.first + way.each * share, way.peak(share)]
        name = f"{way.parallel if plan.processes > 1 else 'one GPU'}{' recompute' if way.recomputes else ''}"
        row = "".join(f"{number / GIB:>12.1f}" for number in numbers)
        lines.append(f"{name:16}{row}{way.fitting(plan.capacity):>12,}")
    return [*lines, "fit: the most images a micro-batch; a step takes more of them with micro_batches=2, 3, ..."]
