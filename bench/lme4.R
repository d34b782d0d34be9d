# lme4 on the ratings: Rscript lme4.R DATA.csv RESULT.csv REPEATS
# RESULT.csv has one line "name,value" for each parameter, each time, and each version.

suppressPackageStartupMessages(library(lme4))

arguments <- commandArgs(trailingOnly = TRUE)
data <- read.csv(arguments[1])
for (name in c("students", "instructors", "departments")) data[[name]] <- factor(data[[name]])

seconds <- c()
for (i in seq_len(as.integer(arguments[3]))) {
  seconds[i] <- system.time(
    # ML, as the others maximise; REML is lme4's default.
    fit <- lmer(ratings ~ service + (1 | students) + (1 | instructors) + (1 | departments),
                data = data, REML = FALSE)
  )[["elapsed"]]
}

fixed <- fixef(fit)
spread <- as.data.frame(VarCorr(fit))
result <- rbind(
  data.frame(name = c("Intercept", names(fixed)[-1]), value = unname(fixed)),
  data.frame(name = paste0("sd(", ifelse(spread$grp == "Residual", "residual", spread$grp), ")"),
             value = spread$sdcor),
  data.frame(name = "seconds", value = seconds),
  data.frame(name = c("version R", "version lme4"),
             value = c(paste(R.version$major, R.version$minor, sep = "."),
                       as.character(packageVersion("lme4"))))
)
result$value <- as.character(result$value)  # 15 digits, which is all that R keeps
write.csv(result, arguments[2], row.names = FALSE)
