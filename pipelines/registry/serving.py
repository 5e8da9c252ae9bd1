"""The registered model as MLflow loads it: encoded pictures in, features and masks out.

MLflow runs this file (`models from code`); nothing is pickled.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from dpmpp_core import load_model
from dpmpp_core.data.images import decode
from dpmpp_core.retrieval import to_columns


class DpmppModel(PythonModel):
    """A model of MLflow that returns features and masks of pictures."""

    def load_context(self, context: Any) -> None:
        """Load the model from the version's files, onto `device` of MLflow's `model_config`.

        It is the CPU where none is given: a server has no plan that assigns it a GPU.
        """
        device = (context.model_config or {}).get("device", "cpu")
        self._model = load_model(context.artifacts["model"], device)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Embed pictures.

        Args:
            context: of MLflow; not used.
            model_input: column `image` with the bytes of one JPEG or PNG file per row.
            params: of MLflow; not used.

        Returns:
            columns `feature_SPACE` and `mask_SPACE`: one list of floats per row, in the index of
            `model_input`.

        Raises:
            DataError: bytes that are not a picture.
        """
        images = [decode(bytes(data)) for data in model_input["image"]]
        embedded = self._model.embed(images)
        columns = to_columns(embedded.features, embedded.masks)
        return pd.DataFrame(
            {name: list(values) for name, values in columns.items()}, index=model_input.index
        )


set_model(DpmppModel())
