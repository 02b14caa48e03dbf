"""A trained prior for other maps than those that it was trained on: of another size, told other things. What it knows it keeps.

prior = with_context(for_maps_of(prior, 22, 26), maps=1)
"""

from collections.abc import Collection, Mapping

from torch import nn

from pixelcnn import GatedPixelCNN


def for_maps_of(prior: GatedPixelCNN, height: int, width: int) -> GatedPixelCNN:
    """The same prior with a table of code frequencies for maps of this size, resampled where it had one."""
    if prior.arguments["marginal"] == (height, width):
        return prior
    other = GatedPixelCNN(**(prior.arguments | {"marginal": (height, width)}))
    table = other.log_marginal if prior.log_marginal is None else prior.marginal_map(height, width)[0]
    other.load_state_dict(prior.state_dict() | {"log_marginal": table})
    return other


def told_of(prior: GatedPixelCNN, conditions: Mapping[str, int], kept: Collection[str]) -> GatedPixelCNN:
    """The same prior for other conditions: it keeps what it knows of those in `kept`, the others start as if they said
    nothing."""
    if dict(conditions) == prior.arguments["conditions"] and set(kept) >= conditions.keys():
        return prior
    other = GatedPixelCNN(**(prior.arguments | {"conditions": dict(conditions)}))
    names = [f"conditions.{part}.{name}" for name in kept for part in ("first", "unknown")]
    state = {
        key: value
        for key, value in prior.state_dict().items()
        if not key.startswith(("conditions.first.", "conditions.unknown."))
        or any(key == name or key.startswith(f"{name}.") for name in names)
    }
    if other.conditions is None:
        state = {key: value for key, value in state.items() if not key.startswith("conditions.")}
    elif prior.conditions is None:
        nn.init.zeros_(other.conditions.last[-1].weight), nn.init.zeros_(other.conditions.last[-1].bias)
    else:
        for name in conditions.keys() - set(kept):
            for parameter in other.conditions.first[name].parameters():
                nn.init.zeros_(parameter)
    other.load_state_dict(state, strict=False)
    return other


def with_context(prior: GatedPixelCNN, maps: int, mirrored_half: bool | None = None) -> GatedPixelCNN:
    """The same prior told so many code maps, and its own mirrored half or not (None: as it is); what it was not told before
    says nothing yet. One that is told features stays as it is: its context says other things too."""
    if "context_features" in prior.arguments:
        return prior
    told = {
        "context": maps,
        "mirrored_half": prior.mirrored_half is not None if mirrored_half is None else mirrored_half,
    }
    changed = [name for name, value in told.items() if value != prior.arguments.get(name, 0)]
    if not changed:
        return prior
    kept = {name: value for name, value in prior.arguments.items() if name not in told}
    if "context" in changed:
        kept.pop("told_temperature", None)
    other = GatedPixelCNN(**(kept | told))
    state = {name: value for name, value in prior.state_dict().items() if name.split(".")[0] not in changed}
    state |= {name: value for name, value in other.state_dict().items() if name.split(".")[0] in changed}
    other.load_state_dict(state)
    for encoder in (other.told_encoders()[name] for name in changed if told[name]):
        encoder.embedding.weight.data.copy_(prior.embedding.weight)  # what is known of the codes holds for these too
    return other
