# /// script
# requires-python = ">=3.11"
# dependencies = ["sereno", "pandas", "scikit-learn", "joblib"]
# ///
"""Probability of default of every applicant, for the marketing system."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import joblib
import pandas as pd
from annotated_types import Ge, Le

from sereno import Key, Model


class Applicant(TypedDict):
    """One customer and the credit that they ask for. data/README.md says what each code means; amounts are in DM."""

    customer_id: Key[int]
    checking_account: Literal["none", "below_0", "0_to_200", "200_or_more"]
    duration_months: Annotated[int, Ge(1), Le(120)]
    credit_history: Literal["no_credits", "all_paid_here", "paid_so_far", "late_before", "critical"]
    purpose: Literal[
        "car_new", "car_used", "furniture", "radio_tv", "appliances",
        "repairs", "education", "retraining", "business", "other",
    ]  # fmt: skip
    credit_amount: Annotated[int, Ge(1)]
    savings: Literal["below_100", "100_to_500", "500_to_1000", "1000_or_more"] | None
    employment: Literal["unemployed", "below_1_year", "1_to_4_years", "4_to_7_years", "7_years_or_more"]
    installment_rate: Annotated[int, Ge(1), Le(4)]
    personal_status: Literal["male_divorced", "female_not_single", "male_single", "male_married"]
    other_debtors: Literal["none", "co_applicant", "guarantor"]
    residence_years: Annotated[int, Ge(1), Le(4)]
    property: Literal["real_estate", "savings_or_insurance", "car_or_other"] | None
    age: Annotated[int, Ge(18), Le(110)]
    other_installments: Literal["none", "bank", "stores"]
    housing: Literal["own", "rent", "free"]
    existing_credits: Annotated[int, Ge(1)]
    job: Literal["unskilled_non_resident", "unskilled", "skilled", "management"]
    dependants: Annotated[int, Ge(0)]
    telephone: bool
    foreign_worker: bool


class Score(TypedDict):
    probability_of_default: Annotated[float, Ge(0), Le(1)]
    band: Literal["A", "B", "C", "D"]


model = Model("credit-scoring", inputs=Applicant, outputs=Score,
              artifacts={"pipeline": "credit_scoring.joblib"}, schedule="0 0 * * *")  # fmt: skip


@model.load
def load(pipeline: Path):
    return joblib.load(pipeline)


@model.read
def read(data_date: date, warehouse: str) -> pd.DataFrame:
    return pd.read_parquet(f"{warehouse}/applicants/{data_date}.parquet")


@model.predict
def predict(pipeline, applicants: pd.DataFrame) -> pd.DataFrame:
    risk = pipeline.predict_proba(applicants)[:, 1]
    band = pd.cut(risk, [0, 0.1, 0.25, 0.5, 1], labels=list("ABCD"), include_lowest=True)
    return pd.DataFrame({"probability_of_default": risk, "band": band})


if __name__ == "__main__":
    model.main()
