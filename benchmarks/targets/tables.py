"""Real tables that come with scikit-learn and statsmodels."""

from collections.abc import Callable

import pandas as pd
from sklearn import datasets
from statsmodels import datasets as of_statsmodels


def tables() -> dict[str, Callable[[], pd.DataFrame]]:
    """Return the loaders of the tables, by name."""

    def of_sklearn(load: Callable[..., object], **options: object) -> Callable[[], pd.DataFrame]:
        return lambda: load(as_frame=True, **options).data  # pyright: ignore[reportAttributeAccessIssue]

    return {
        "iris": of_sklearn(datasets.load_iris),
        "wine": of_sklearn(datasets.load_wine),
        "breast cancer": of_sklearn(datasets.load_breast_cancer),
        "diabetes": of_sklearn(datasets.load_diabetes, scaled=False),
        "linnerud": of_sklearn(datasets.load_linnerud),
        "macro": lambda: of_statsmodels.macrodata.load_pandas().data,
        "star98": lambda: of_statsmodels.star98.load_pandas().data,
        "digits": of_sklearn(datasets.load_digits),
    }
