"""Write a policy as an ONNX graph, from observations to actions in the env's units."""

from typing import Any

import numpy as np

from segue import predict
from segue.errors import SegueError
from segue.system import machine


def onnx_bytes(policy: predict.Policy) -> bytes:
    """Return an ONNX graph from "obs" [batch, obs] to "action" [batch, act], both float32.

    The graph computes what `predict.Policy` computes. It needs opset 17 (for LayerNormalization) and IR version 8,
    which runtimes read since 2022.

    Raises:
        SegueError: if ONNX's package is missing.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise SegueError("ONNX needs its package: pip install 'segue[onnx]'.") from None
    constants, nodes, output = dict(policy.arrays), [], "obs"

    def append(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal output
        nodes.append(helper.make_node(kind, [output, *more], [f"x{len(nodes)}"], **attributes))
        output = f"x{len(nodes) - 1}"

    def clip(limit: float) -> None:
        name = f"limit{len(nodes)}"
        constants.update({f"-{name}": np.asarray(-limit, np.float32), name: np.asarray(limit, np.float32)})
        append("Clip", f"-{name}", name)

    def network(about: dict[str, Any], prefix: str = "") -> None:
        """Append the nodes from "obs" to an action in [-1, 1]."""
        nonlocal output
        output, base = "obs", None
        if "base" in about:
            network(about["base"], "base.")
            output, base = "obs", output
            append("Concat", base, axis=-1)
        activation, last = {"relu": "Relu", "tanh": "Tanh", "elu": "Elu"}[about["activation"]], len(about["layers"]) - 2
        if about["standardised"]:
            append("Sub", f"{prefix}obs_mean")
            append("Div", f"{prefix}obs_std")
            clip(about["obs_clip"])
        for i in range(last + 1):
            append("Gemm", f"{prefix}layer{i}.weight", f"{prefix}layer{i}.bias", transB=1)
            if i < last:
                norm_after = about.get("norm_after", False)
                if norm_after:
                    append(activation)
                if about["layer_norm"]:
                    norm = (f"{prefix}norm{i}.weight", f"{prefix}norm{i}.bias")
                    append("LayerNormalization", *norm, epsilon=about["layer_norm"])
                if not norm_after:
                    append(activation)
        if about.get("rescaled"):
            append("Tanh")
            append("Mul", f"{prefix}out_scale")
            append("Add", f"{prefix}out_shift")
        if base is not None:
            append("Add", base)
        append("Tanh") if about["output"] == "tanh" else clip(about["limit"])

    about = policy.about
    network(about)
    constants |= {"one": np.asarray(1, np.float32), "half_width": np.float32(0.5) * (policy.high - policy.low)}
    if not ((policy.low == -1).all() and (policy.high == 1).all()):
        append("Add", "one")
        append("Mul", "half_width")
        append("Add", "low")
    nodes[-1].output[0] = "action"
    used = {name for node in nodes for name in node.input}
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in (("obs", policy.obs), ("action", policy.act))
    ]
    kept = [numpy_helper.from_array(np.asarray(constants[name]), name) for name in sorted(used & constants.keys())]
    model = helper.make_model(
        helper.make_graph(nodes, "policy", ends[:1], ends[1:], kept),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="segue",
        producer_version=machine.versions().get("segue", ""),
    )
    metadata = {**about["about"], "low": policy.low.tolist(), "high": policy.high.tolist()}
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)
