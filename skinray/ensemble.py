"""Several models as one: the mean of their probabilities, as a Keras model like any other."""

from collections.abc import Sequence

import keras


def flipped(model: keras.Model) -> keras.Model:
    """The mean of what a model says of a photo and of its three mirror images: a lesion has no left and no upright.

    Args:
        model: uint8 [N, size, size, 3] (and what else it takes) -> probabilities float32 [N, C].

    Returns:
        A model with the same inputs and outputs, which takes four times as long.
    """
    inputs = [keras.Input(batch_shape=each.shape, dtype=each.dtype, name=each.name) for each in model.inputs]
    outputs = []
    for axes in ((), (1,), (2,), (1, 2)):
        photo = keras.ops.flip(inputs[0], axis=axes) if axes else inputs[0]
        outputs.append(model([photo, *inputs[1:]] if len(inputs) > 1 else photo))
    mean = keras.layers.Average(dtype="float32", name="mean_of_flips")(outputs)
    return keras.Model(inputs, mean, name=f"{model.name}_flipped")


def averaged(members: Sequence[keras.Model]) -> keras.Model:
    """The mean of what several models say.

    Args:
        members: Models with the same inputs and outputs: uint8 [N, size, size, 3] (and what else they take) -> probabilities
            float32 [N, C].

    Returns:
        A model with the same inputs and outputs that holds all of them; it takes as long as all of them together.
    """
    inputs = [keras.Input(batch_shape=each.shape, dtype=each.dtype, name=each.name) for each in members[0].inputs]
    given = inputs[0] if len(inputs) == 1 else inputs
    outputs = []
    for number, member in enumerate(members):
        member.name = f"member_{number}"  # two parts of a model cannot share a name
        outputs.append(member(given))
    mean = keras.layers.Average(dtype="float32", name="probabilities")(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, mean, name="ensemble")
